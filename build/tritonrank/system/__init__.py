"""What every room may need: the machine, the libraries' chatter, dates, help texts."""
