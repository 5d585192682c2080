"""`python -m hftransfer` is the command `hftransfer`."""

from hftransfer.cli import main

if __name__ == "__main__":
    main()
