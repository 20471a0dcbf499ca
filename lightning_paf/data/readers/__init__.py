"""Files of images and labels: npz, pickle, parquet, and plain npy arrays."""
