"""The article's Keras network on tinynet, as a `Sequential`: VALID padding, softmax output."""

from tinynet.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential, Softmax

model = Sequential()
model.add(Conv2d(3, 32, (3, 3)))
model.add(ReLU())
model.add(MaxPool2d(2))
model.add(Conv2d(32, 16, (3, 3)))
model.add(ReLU())
model.add(MaxPool2d(2))
model.add(Flatten())
model.add(Linear(16 * 6 * 6, 10))
model.add(Softmax())
