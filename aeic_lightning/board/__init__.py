"""A table of codecs that anyone can repeat: submissions are decoded and measured anew, or refused with the reason."""
