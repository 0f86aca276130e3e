"""From a parameters file to the book: suites and records, executed notebooks with their figures, pages."""
