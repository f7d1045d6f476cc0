"""The same client and coordinator inside Flower's ClientApp and ServerApp."""
