"""The faces of a platform as the interfaces of its nouns: Ray handles and the command line."""
