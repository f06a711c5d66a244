"""Programs that measure: each prints a table and leaves a record in `benchmarks/records/`."""
