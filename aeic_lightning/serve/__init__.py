"""A page on this machine to try the codec: a photograph in, its reconstruction beside JPEG, WebP and AVIF."""
