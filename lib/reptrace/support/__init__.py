"""What every wing needs: checks of arguments, fingerprints, processes."""
