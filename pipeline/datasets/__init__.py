"""Sources of images and captions, one file each: `INFO`, `items(root, split)`, `pairs(root, split)`."""
