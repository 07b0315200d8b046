"""Release folders: files, model card and an entry for OpenModelDB."""
