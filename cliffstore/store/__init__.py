"""The store: its layout, objects, arrays, tables, receipts and the SQL catalog over them."""
