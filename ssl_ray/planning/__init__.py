"""What a job will cost, before it is paid for: a sample of every stage on this machine, and arithmetic for others."""
