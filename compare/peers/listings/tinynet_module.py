"""The article's PyTorch network on tinynet, as a `Module`: NCHW, VALID padding, log-softmax output."""

from tinynet import functional as F
from tinynet import nn


class Net(nn.Module):
    def __init__(self):
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 16, 3)
        self.fc1 = nn.Linear(16 * 6 * 6, 10)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.reshape(-1, 16 * 6 * 6)
        x = F.log_softmax(self.fc1(x), axis=-1)
        return x


model = Net()
