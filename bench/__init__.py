"""Side by side: streamgw, nginx `stream` and HAProxy, one worker each, interleaved, in a network of their own."""
