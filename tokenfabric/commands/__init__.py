"""The commands of ``tokenfabric``, one per file: ``add_arguments(parser)`` and ``run(args)``."""
