"""An action reasoning model as a policy: images and an instruction in; depth, trace and a chunk of actions out."""
