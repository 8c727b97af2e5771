"""What an update reveals is limited here, and counted."""
