"""From raw images and captions to feature stores."""
