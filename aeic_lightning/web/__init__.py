"""The codec as a static site: compresses and decompresses in a visitor's browser, without a server's help."""
