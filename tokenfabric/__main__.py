"""``python -m tokenfabric``"""

import sys

from tokenfabric.cli import main

if __name__ == "__main__":
    sys.exit(main())
