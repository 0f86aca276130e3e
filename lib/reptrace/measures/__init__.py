"""Features -> covariance -> numbers with standard errors; a trajectory of them -> phases."""
