"""The generated dataset `shapes`, and folders of images to analyze."""
