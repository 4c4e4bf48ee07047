"""Small wrong changes to the package, each with the test files that must notice it."""
