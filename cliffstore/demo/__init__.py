"""The built-in demo: a corpus written for this project, and the small model that a package ships."""
