"""The image store: base images by their content, pulled, checked, immutable; `images.Store`."""
