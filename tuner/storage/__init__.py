"""Store studies in a folder or in an object store, and ensure that only one process writes to a study."""
