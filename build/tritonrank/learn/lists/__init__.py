"""From the hours of a log to the lists that a night learns, and those that it is judged on."""
