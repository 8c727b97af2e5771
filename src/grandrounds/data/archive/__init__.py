"""From a hospital's archive to a flat folder of volumes; nothing here leaves the site."""
