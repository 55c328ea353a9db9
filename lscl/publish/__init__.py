"""What the book and the README show, and how they are built. Nothing else imports this package."""
