"""What `verify` looks at, part by part; `cliffstore.store.verify` joins the parts."""
