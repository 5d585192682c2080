"""What `accelerate launch` starts: `accelerate launch scripts/train.py configs/text/full.yaml key=value …`.

The same as `accelerate launch -m hftransfer train …`.
"""

import sys

from hftransfer.cli.commands import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
