"""What may stop a party of a federation, looked for before it does: a line each, with the mend."""
