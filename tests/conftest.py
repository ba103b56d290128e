"""Its presence puts this folder on the import path, so that tests in subfolders can share helpers like `adapter_cases`."""
