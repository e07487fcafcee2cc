#!/usr/bin/env bash
# What cluster/aws.yaml stands on: a bucket, two roles, two security groups in the default VPC, and the policy of who
# runs `ray up`. Once, as an administrator of the account:
#     bash cluster/iam/aws.sh BUCKET REGION
set -euo pipefail
bucket=$1
export AWS_DEFAULT_REGION=$2
folder=$(dirname "$0")
account=$(aws sts get-caller-identity --query Account --output text)

policy() { sed "s/BUCKET/$bucket/g; s/REGION/$AWS_DEFAULT_REGION/g; s/ACCOUNT/$account/g" "$folder/$1"; }

# A bucket is encrypted and closed to the public since 2023 without being asked to.
if [ "$AWS_DEFAULT_REGION" = us-east-1 ]; then
    aws s3api create-bucket --bucket "$bucket" >/dev/null
else
    aws s3api create-bucket --bucket "$bucket" \
        --create-bucket-configuration "LocationConstraint=$AWS_DEFAULT_REGION" >/dev/null
fi

for role in braintum-head braintum-worker; do
    aws iam create-role --role-name "$role" --assume-role-policy-document "$(policy aws-trust.json)" >/dev/null
    aws iam put-role-policy --role-name "$role" --policy-name data --policy-document "$(policy aws-data.json)"
    aws iam create-instance-profile --instance-profile-name "$role" >/dev/null
    aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
done
aws iam put-role-policy --role-name braintum-head --policy-name autoscaler \
    --policy-document "$(policy aws-autoscaler.json)"
aws iam create-policy --policy-name braintum-launcher --policy-document "$(policy aws-launcher.json)" >/dev/null
# EC2's own role for spot requests, which an account has once and the head may not make.
aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null 2>&1 || true

vpc=$(aws ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId' --output text)
group() {
    aws ec2 create-security-group --group-name "$1" --description "$2" --vpc-id "$vpc" --query GroupId --output text
}
head=$(group braintum-head "SSH from one address, and its workers")
worker=$(group braintum-worker "The head and other workers, nobody else")
allow() { aws ec2 authorize-security-group-ingress --group-id "$1" "${@:2}" >/dev/null; }
allow "$head" --protocol tcp --port 22 --cidr "${MY_ADDRESS:-$(curl -fsS https://checkip.amazonaws.com)}/32"
allow "$head" --protocol -1 --source-group "$worker"
allow "$worker" --protocol -1 --source-group "$head"
allow "$worker" --protocol -1 --source-group "$worker"

echo "BUCKET=$bucket sg-HEAD=$head sg-WORKER=$worker"
