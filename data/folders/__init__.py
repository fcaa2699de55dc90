"""Folders of images: their files, splits, classes and pixels."""
