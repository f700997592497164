"""Which files of a folder are taken for clips, by the ends of their names; what they are, reading tells."""

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".apng", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"}
    | {".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
CLIP_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
