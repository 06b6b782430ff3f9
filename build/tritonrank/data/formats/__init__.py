"""Reading one file or one database table: bytes to cells, whatever wrote them."""
