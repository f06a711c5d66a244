"""Image files below a folder; where labels are wanted, the first sub-folder is the class."""

from __future__ import annotations

from ssl_ray.data.sources.limit import enough
from ssl_ray.data.sources.listing import IMAGE_SUFFIXES, Listing, mtime_ns, prefix_of, require_folder, rows, walk
from ssl_ray.errors import SourceError


def list_folder(source: str, *, labeled: bool) -> Listing:
    """Raises:
    SourceError: not there, no images in it, or images without class folders where labels are wanted.
    """
    base, prefix = require_folder(source), prefix_of(source)
    listing = Listing(source, "folder")
    loose = 0
    for found in walk(source):
        names, paths, sizes, times, classes = [], [], [], [], []
        for entry in found:
            inside = entry.path[len(base) :].lstrip("/")
            if not inside.lower().endswith(IMAGE_SUFFIXES):
                listing.drop("not an image by its suffix", inside)
                continue
            first, separator, _ = inside.partition("/")
            if not separator:
                loose += 1
                if labeled:
                    continue
            names.append(inside)
            paths.append(prefix + entry.path)
            sizes.append(int(entry.size))
            times.append(mtime_ns(entry))
            classes.append(first if separator else None)
        if names:
            listing.rows.append(rows(names, paths, sizes, times, length=sizes, class_name=classes))
        if not labeled and enough(source, len(listing)):
            break
    if labeled and loose and not len(listing):
        raise SourceError(
            f"{source} has {loose} images but no class sub-folders; put every image into a folder that is named after its "
            "class, as in folder/cat/1.jpg"
        )
    if labeled and loose:
        raise SourceError(f"{source} has {loose} images outside the class sub-folders; move them into one or take them out")
    if not len(listing):
        others, kinds = sum(listing.dropped.values()), " ".join(IMAGE_SUFFIXES)
        raise SourceError(f"{source} holds no images ({others} other files); images end in {kinds}")
    return listing
