"""What docs/ is made with beside its pages: pictures, the terminal cast, the reference."""
