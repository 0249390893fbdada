"""`report`: runs and result files as one page."""
