"""`python -m wan_vae` is `wan-vae`."""

from wan_vae.cli import main

if __name__ == "__main__":
    main()
