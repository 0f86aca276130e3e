"""The toy model of features and a classifier, whose dynamics can be worked out; imports no other wing."""
