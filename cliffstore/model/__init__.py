"""What runs on a language model: loading it, finding its sites, capturing them."""
