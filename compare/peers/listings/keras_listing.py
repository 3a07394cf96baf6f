"""The article's network in Keras: a stack of layers."""

from keras import Sequential
from keras.layers import Conv2D, Dense, Flatten, MaxPool2D
from keras.losses import CategoricalCrossentropy

model = Sequential()
model.add(Conv2D(32, (3, 3), activation='relu', input_shape=(32, 32, 3)))
model.add(MaxPool2D())
model.add(Conv2D(16, (3, 3), activation='relu'))
model.add(MaxPool2D())
model.add(Flatten())
model.add(Dense(10, activation='softmax'))

# Keras 3 forces nothing: it warns that it would rather have Input((32, 32, 3)) than
# `input_shape`. The article gives no loss; this is the one for softmax and one-hot classes.
loss = CategoricalCrossentropy()
