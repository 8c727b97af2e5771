"""Guards are the last code that touches an update before it leaves a site."""
