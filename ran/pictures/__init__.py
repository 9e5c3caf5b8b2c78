"""What the attention of a network looks at, drawn; and the plots."""
