"""How a frozen base is held: what each quantizer can do, needs and costs (`spec`, no torch), and its rules' words."""
