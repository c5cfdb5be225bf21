"""DARec and its parts. Models take packed token streams and know nothing of datasets."""
