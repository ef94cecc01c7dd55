# The default task image of Determined 0.38.1 with what detsd needs baked in, for those who start
# tasks often or whose tasks have no way to a package index:
#
#   docker build -t REGISTRY/detsd:1 . && docker push REGISTRY/detsd:1
#
# and in the experiment file:
#
#   environment:
#     image: REGISTRY/detsd:1
FROM determinedai/pytorch-ngc-dev:0736b6d
WORKDIR /opt/detsd
COPY requirements.txt startup-hook.sh ./
COPY constraints constraints
RUN bash -e startup-hook.sh
WORKDIR /
