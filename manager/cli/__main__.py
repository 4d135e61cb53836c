"""`python -m manager.cli`: the same as `livesnap`."""

from manager.cli import main

if __name__ == "__main__":
    main()
