"""From files on disk to arrays: decoding images, finding them in folders."""
